"""From a recipe to a finished run: its steps, what each does, what is done already, what a person sees."""
