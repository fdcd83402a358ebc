"""What every room may use: warnings that name the line of the caller, and the rule of packages that are optional."""
