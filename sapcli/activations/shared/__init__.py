"""Work on images that several processes share, and that is kept in parts while it comes."""
