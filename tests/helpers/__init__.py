"""What tests share: drawn images and views, small networks, runs as users leave them, processes that are killed."""
