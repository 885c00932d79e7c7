"""The service, from one function to a real process that is killed."""
