"""What runs show: measurements that explain a head, figures of them, and a report on one page."""
