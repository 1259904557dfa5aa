"""The screens, one file each with its .tcss beside it. All but the main one are imported when first shown."""
