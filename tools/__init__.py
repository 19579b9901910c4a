"""Makes what is shipped: adapters, labels, pictures, the verdict's examples."""
