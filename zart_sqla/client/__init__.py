"""What an application calls: starting executions, waiting for them, asking for them, ending them."""
