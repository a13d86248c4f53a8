SELECT nats_get_text('bench', 'key');
