"""From files of any known form to rows of the normal form."""
