"""A web shop with FastAPI: a request publishes, the lifespan handles."""
