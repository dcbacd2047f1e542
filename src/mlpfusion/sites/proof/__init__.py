"""Whether a row describes a model, proven by a run of the model on made-up inputs."""
