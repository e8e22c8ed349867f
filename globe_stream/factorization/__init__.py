"""W ~= A phi(sum_j alpha_j B_j): groups of experts, composition, adapters, errors."""
