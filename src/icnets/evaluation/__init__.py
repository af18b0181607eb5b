"""What trained units do: how often their collisions fire."""
