"""From members to one prediction: what is learned here is learned nested."""
