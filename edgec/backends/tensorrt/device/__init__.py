"""What runs on the device; copied into bundles, and never imported by edgec."""
