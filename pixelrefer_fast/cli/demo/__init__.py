"""`demo`: both embedded models on a scene and a video, with what a question costs and a picture."""
