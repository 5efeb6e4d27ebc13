"""Server app and client app that run a scenario in a Flower deployment."""
