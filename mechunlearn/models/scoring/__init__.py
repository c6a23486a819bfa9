"""What a model says to facts: whole answers, options, running text."""
