"""Tables of the paper: files that list rows, and the verb that trains and evaluates them."""
