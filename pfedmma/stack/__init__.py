"""The client axis: parameters, optimizer state and private rows of many clients at once. Knows no method."""
