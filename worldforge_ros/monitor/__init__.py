"""What a person sees of the whole running stack, from what its topics say."""
