"""The four experts: kernel A (RKHS), B (deep Galerkin), C (Lévy SDE) and D (signature), and what they are told."""
