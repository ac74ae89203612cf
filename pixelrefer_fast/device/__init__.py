"""What runs where: small tables to a device, captured graphs, free memory, counted launches and bytes."""
