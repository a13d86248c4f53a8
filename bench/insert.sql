INSERT INTO drained VALUES (repeat('y', 100));
