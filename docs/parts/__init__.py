"""What stands in the generated parts of the documents, a file for each subject."""
