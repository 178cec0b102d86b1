"""Many runs of one plan: which, how large each is, which are done, what they are worth, and what follows from all of them."""
