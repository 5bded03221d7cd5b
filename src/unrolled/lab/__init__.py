"""What only the book needs: exercises, explorers, figures, data. The stack never imports it."""
