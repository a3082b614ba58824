"""What makes the server safe to leave running: a gate for who may use it, a record of each request, limits on
connections, and stopping with a deadline."""
