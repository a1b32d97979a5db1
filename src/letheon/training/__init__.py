"""The loop: it trains any job, and knows neither what is forgotten nor what is kept."""
