"""Text in: preference rows become token ids. The training program itself never sees text."""
