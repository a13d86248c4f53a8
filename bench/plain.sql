INSERT INTO plain VALUES (repeat('x', 100));
