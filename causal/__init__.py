"""The task: graphs, text and claims, exact reasoning and its checker, rewards. Imports no other package."""
