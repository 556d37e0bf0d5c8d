"""What a model did, as data: attention, masks, occlusion, confidence. No request, no visitor."""
