//! The credentials we present to vendors, and how they stay fresh: the refresh path.
