"""Best responses: each oracle turns a task into a new member."""
