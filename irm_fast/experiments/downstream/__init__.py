"""What happens when a policy is optimised against a reward, on made text whose quality can be read off any answer."""
