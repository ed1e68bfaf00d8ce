"""The video agent: a loop in which a model looks at parts of videos until its answer holds."""
