SELECT nats_publish_text('a', 'hello');
