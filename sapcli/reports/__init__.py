"""What was found and done, as documents, figures, pages and Markdown."""
