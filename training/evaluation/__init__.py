"""What only evaluation needs, which training never sees."""
