"""The screens, one file each. All but the main one are imported when they are first shown."""
