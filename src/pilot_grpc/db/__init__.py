"""The SQL: one constant and one function per statement, a module per noun."""
