"""What hands a run on to others: its model card, and folders for the Hugging Face hub and for bioimage.io."""
