SELECT nats_publish_text_outbox('queue', repeat('x', 100));
