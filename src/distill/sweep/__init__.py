"""Many runs from one command: what they are, which of them are there already, how long the others take."""
