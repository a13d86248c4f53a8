SELECT nats_put_text('bench', 'key', 'hello');
