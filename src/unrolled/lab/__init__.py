"""What only the book needs: exercises, explorers, figures, data sets. The stack never imports it."""
