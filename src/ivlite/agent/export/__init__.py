"""What an answer becomes for a person: captions, chapters, clips, a page."""
