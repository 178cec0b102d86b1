"""Plans by name: a module's PLANS maps each to the dataclass of its options and the function that makes it."""
