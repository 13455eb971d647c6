"""What is measured: zart_sqla, its peers, and the floor. Each is a script that runs in an environment of its own."""
