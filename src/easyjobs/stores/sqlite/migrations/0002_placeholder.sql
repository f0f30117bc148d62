select 1; -- a number that another change takes
