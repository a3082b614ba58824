"""One model, many inputs."""
