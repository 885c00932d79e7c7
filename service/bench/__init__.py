"""`python -m service bench`: what one's own bundle takes on one's own machine. Nothing else imports this."""
